"""The stages in order, the run folder, resume. The only room that knows every stage."""
