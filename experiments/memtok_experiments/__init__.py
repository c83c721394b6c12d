"""What the paper and its public reproduction show, run anew with the published figures beside it."""
