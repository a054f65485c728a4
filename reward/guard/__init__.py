"""The guard's model: what the rule reward model says, learnt by something small enough to be asked about every stream."""
