"""Pictures of optimizers at work; matplotlib is imported when something is drawn."""
