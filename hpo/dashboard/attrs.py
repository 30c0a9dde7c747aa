"""System attributes of studies by which notes and plots are known."""

from __future__ import annotations

# optuna-dashboard's own: the note that a person wrote, and plots.
NOTE_VERSION = "dashboard:note_ver"
NOTE_TEXT = "dashboard:note_str:"
PLOT = "dashboard:plot_data:"
PLOT_PREFIX = "hpo-"  # of the ids of this service's plots
# Workers of older releases wrote notes, and here the version of the last one.
NOTE_VERSION_OF_WORKER = "hpo:story_version"
