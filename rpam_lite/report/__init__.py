"""What happened, to look at: pictures and a page made from the files of a run."""
