"""Training: one update, its optimisers and reduction, checkpoints and the epoch loop; neither Ray nor MLflow."""
