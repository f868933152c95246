"""Trackers people use: a run's curves in TensorBoard, MLflow or Weights & Biases.

tracker        what a tracker is told, and what it must do
points         the journal's rounds, hand-off steps and structures as points of curves
tracking       follows the journal in threads of its own: a tracker cannot hurt the run
event_files, mlflow_run, wandb_run
               one tracker each; its package is imported only where the config asks for it
"""
