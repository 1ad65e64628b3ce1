"""Many recipes judged on one audit: grids, their cells, the leaderboard, and the one look at held-out contrasts."""
