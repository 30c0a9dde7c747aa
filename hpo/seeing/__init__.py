"""What people look at: pictures and plots of trials, notes, the story of a study."""
