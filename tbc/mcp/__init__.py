"""The books as tools of the Model Context Protocol, for agents that are not Python.

* `tbc.mcp.tools` holds the nine tools: what they take, what they answer, what they do.
* `tbc.mcp.payloads` makes accounts, donors and refusals plain.
* `tbc.mcp.schemas` are the pieces of their JSON schemas, and what is wrong with arguments, in words.
* `tbc.mcp.server` serves them over stdio or streamable HTTP, with the official SDK.
"""
