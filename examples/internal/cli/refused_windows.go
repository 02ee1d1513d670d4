package cli

import (
	"errors"

	"golang.org/x/sys/windows"
)

// isRefused reports whether nobody listens on a socket that exists.
func isRefused(err error) bool { return errors.Is(err, windows.WSAECONNREFUSED) }
