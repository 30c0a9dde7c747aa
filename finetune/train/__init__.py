"""Training: batches, gradients, optimizer and schedule."""
