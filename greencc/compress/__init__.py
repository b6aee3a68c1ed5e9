"""The search for the cheapest model inside an accuracy budget (docs/decisions/0012)."""
