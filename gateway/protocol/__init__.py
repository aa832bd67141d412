"""Pure rules and values of the gateway: no sockets, no store, no clock."""
