"""Pictures of where an answer came from: the paper's Figures 4 and 5 for any video and question."""
