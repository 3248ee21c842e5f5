"""`ctm distill`: what a person would have to know to make a teacher fast, chosen, said and written as a recipe."""
