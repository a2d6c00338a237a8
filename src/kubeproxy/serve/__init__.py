"""What others ask us over HTTP: health, metrics, and how we are set up."""
