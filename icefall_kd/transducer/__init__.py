"""The transducer: predictor, joiner, model and its pruned loss."""
