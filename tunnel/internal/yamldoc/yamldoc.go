// Package yamldoc finds what a YAML decoder leaves out in silence: documents
// behind the first one.
package yamldoc

import "bytes"

// Several reports whether there is content behind the first YAML document. A line
// that begins with "---" always begins a document, whatever surrounds it, and
// "..." ends one (YAML 1.2, section 9.1).
func Several(data []byte) bool {
	begun, ended := false, false // the first document
	for line := range bytes.Lines(bytes.TrimPrefix(data, []byte("\ufeff"))) {
		rest, marker := bytes.CutPrefix(line, []byte("---"))
		if marker && (len(rest) == 0 || rest[0] <= ' ') {
			ended = begun
			begun = true
			line = rest
		}
		switch text := bytes.TrimSpace(line); {
		case len(text) == 0 || text[0] == '#' || text[0] == '%':
		case string(text) == "...":
			ended = begun
		case ended:
			return true
		default:
			begun = true
		}
	}
	return false
}
