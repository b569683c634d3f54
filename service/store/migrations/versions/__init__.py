"""One file a step. A step that was released is never edited; a change of the tables is a new step."""
