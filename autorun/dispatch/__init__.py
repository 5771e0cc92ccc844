"""From runs to messages: chunks are released within their limits and published."""
