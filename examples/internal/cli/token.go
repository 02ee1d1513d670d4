package cli

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
)

// maxToken bounds a token file, in bytes: what fits into a request head.
const maxToken = 16 << 10

// ReadToken reads a bearer token, which stands alone in its file. No error
// holds any of it.
func ReadToken(file string) (string, error) {
	f, err := os.Open(file)
	if err != nil {
		return "", err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxToken+1))
	if err != nil {
		return "", err
	}
	token := strings.TrimSpace(string(b))
	switch {
	case token == "":
		err = errors.New("it is empty")
	case len(b) > maxToken:
		err = fmt.Errorf("it has more than %d bytes", maxToken)
	case strings.ContainsFunc(token, func(r rune) bool { return r <= ' ' || r > '~' }):
		err = errors.New("it has a character that no token has, or several lines")
	}
	if err != nil {
		return "", fmt.Errorf("token file %s: %w", file, err)
	}
	return token, nil
}
