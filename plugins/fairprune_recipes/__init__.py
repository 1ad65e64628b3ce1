"""Recipes that ship with fairprune_framework: `<name>.yaml` files, read without importing this package."""
