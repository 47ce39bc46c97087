"""The wire between the router and its workers: MessagePack frames over ZeroMQ."""
