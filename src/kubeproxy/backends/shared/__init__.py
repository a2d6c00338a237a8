"""What several modes have in common."""
