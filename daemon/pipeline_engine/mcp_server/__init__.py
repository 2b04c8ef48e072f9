"""The MCP server: pipelines and jobs of a daemon as tools and resources for agents. A client of the daemon, no part of it."""
