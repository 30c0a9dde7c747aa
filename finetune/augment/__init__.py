"""From ten drawings to endless ones."""
