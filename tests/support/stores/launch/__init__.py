"""Programs that start a store on a socket that is already bound. `servers` runs them as files."""
