package cli

import (
	"errors"
	"net/http"
	"strings"

	"golang.org/x/net/http/httpguts"
)

// IsHeaderName reports whether s can be the name of an HTTP header field.
func IsHeaderName(s string) bool { return httpguts.ValidHeaderFieldName(s) }

// ParseHeader reads 'Name: value' and adds it to h.
func ParseHeader(h http.Header, s string) error {
	name, value, ok := strings.Cut(s, ":")
	value = strings.TrimSpace(value)
	if !ok || !IsHeaderName(name) || !httpguts.ValidHeaderFieldValue(value) {
		return errors.New("want 'Name: value'")
	}
	h.Add(name, value)
	return nil
}
