"""The about box: versions, licences, diagnostics, and the list of network accesses."""
