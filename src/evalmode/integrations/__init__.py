"""evalmode inside other tools. Each file serves one tool and is imported by it, never by the other rooms."""
