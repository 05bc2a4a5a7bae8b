"""The sync server: enrols devices, keeps their reports, shows them."""
