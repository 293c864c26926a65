"""The transducer: predictor, joiner, model, losses, checkpoints."""
