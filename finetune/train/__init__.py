"""What a step of training is made of."""
