"""What happens to the machine under a running node: it sleeps, is stopped, changes networks."""
