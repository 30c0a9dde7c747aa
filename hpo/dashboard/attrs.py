"""Names and forms of the attributes by which a study is looked at."""

from __future__ import annotations

# System attribute of a trial: its note, in Markdown.  The dashboard's own place for it is among
# the study's attributes, all of which it goes through for each trial.
# And what is in the trial goes with it when it is handed back.
NOTE_KEY = "hpo:note"
# System attributes of a study, optuna-dashboard's own: its note, and each plot as Plotly's JSON.
# The dashboard cuts texts into pieces for databases with short columns; ours need one.
NOTE_VERSION = "dashboard:note_ver"
NOTE_TEXT = "dashboard:note_str:"
PLOT = "dashboard:plot_data:"
# Ours: when somebody last wrote the story (seconds since 1970), and the note's version then.
STORY_AT = "hpo:story_at"
STORY_VERSION = "hpo:story_version"
