"""The small shared module of all scripts: `ls flexrl` shows what there is."""
