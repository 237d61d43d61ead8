"""Tasks: questions, prompts and the grader."""
