"""The books as tools of the Model Context Protocol, for agents that are not Python.

* `tbc.mcp.tools` lists the nine tools: what they take and what they answer.
* `tbc.mcp.operations` is what they do with the books.
* `tbc.mcp.payloads` makes accounts, donors and refusals plain.
* `tbc.mcp.schemas` are the pieces of their JSON schemas, and what is wrong with arguments, in words.
* `tbc.mcp.server` serves them over stdio or streamable HTTP, with the official SDK.
"""
