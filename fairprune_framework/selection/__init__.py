"""From statistics to scores and a plan."""
