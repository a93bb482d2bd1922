"""Our own routes: who provides, a request to one provider, several over one WebSocket."""
