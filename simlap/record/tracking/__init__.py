"""Projection of the journal into MLflow. Only `writer` imports mlflow, and only when there is something to write."""
