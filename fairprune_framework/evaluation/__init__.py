"""Before and after: contrast metrics, language modelling, the guard, paired statistics, the verdict."""
