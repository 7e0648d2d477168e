"""What is trained: the arms of the experiment, the cluster stage, the training loop."""
