"""System attributes of studies that hold notes and plots."""

from __future__ import annotations

# optuna-dashboard's own: notes that people write, and plots.
NOTE_VERSION = "dashboard:note_ver"
NOTE_TEXT = "dashboard:note_str:"
PLOT = "dashboard:plot_data:"
PLOT_PREFIX = "hpo-"  # prefix of the ids of this service's plots
# Workers of older releases wrote notes, and stored the version of the last one here.
NOTE_VERSION_OF_WORKER = "hpo:story_version"
