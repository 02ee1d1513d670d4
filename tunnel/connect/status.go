package connect

import "strings"

const (
	defaultName = "rhizome"
	// maxDetails bounds the details that one proxy says about an error.
	maxDetails = 512
)

// formatProxyStatus writes the field value of RFC 9209 with one member.
func formatProxyStatus(name string, reason Reason, details string) string {
	if name == "" {
		name = defaultName
	}
	if reason == ErrAuth || !isSFToken(reason.Error()) {
		reason = ErrRequest // there is no registered type for credentials
	}
	v := name
	if !isSFToken(name) {
		v = quoteSF(name)
	}
	v += "; error=" + reason.Error()
	if details != "" {
		v += "; details=" + quoteSF(details)
	}
	return v
}

// quoteSF writes a string of RFC 8941 §3.3.3.
func quoteSF(s string) string {
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(oneLine(s, maxDetails)) + `"`
}

// isSFToken reports whether s is a token of RFC 8941 §3.3.4.
func isSFToken(s string) bool {
	p := sf{s: s}
	_, ok := p.token()
	return ok && p.s == ""
}

// parseProxyStatus finds the error in the values of a Proxy-Status field. Its
// members stand in the order from the target to the client, RFC 9209 §2, so
// that the first one with an error is the proxy where the dial failed. As RFC
// 8941 §4.2 demands, a field that has any defect is ignored as a whole.
func parseProxyStatus(values []string) (reason Reason, details string, ok bool) {
	p := sf{s: strings.Trim(strings.Join(values, ","), " ")}
	for p.s != "" {
		if !p.member() {
			return "", "", false
		}
		params, good := p.params()
		if !good {
			return "", "", false
		}
		if !ok && params["error"] != "" {
			reason, details, ok = Reason(params["error"]), oneLine(params["details"], maxDetails), true
		}
		p.skip(" \t")
		if p.s == "" {
			break
		}
		if !p.eat(',') {
			return "", "", false
		}
		if p.skip(" \t"); p.s == "" {
			return "", "", false // a comma at the end
		}
	}
	return reason, details, ok
}

// sf parses structured fields of RFC 8941 from the front of s.
type sf struct{ s string }

func (p *sf) skip(cut string) { p.s = strings.TrimLeft(p.s, cut) }

func (p *sf) eat(c byte) bool {
	if p.s == "" || p.s[0] != c {
		return false
	}
	p.s = p.s[1:]
	return true
}

// take cuts off the bytes from the front that are in the set.
func (p *sf) take(in func(byte) bool) string {
	i := 0
	for i < len(p.s) && in(p.s[i]) {
		i++
	}
	v := p.s[:i]
	p.s = p.s[i:]
	return v
}

// member parses one member of a list, an item or an inner list, but not its
// parameters.
func (p *sf) member() bool {
	if !p.eat('(') {
		_, ok := p.item()
		return ok
	}
	for {
		p.skip(" ")
		if p.eat(')') {
			return true
		}
		if _, ok := p.item(); !ok {
			return false
		}
		if _, ok := p.params(); !ok {
			return false
		}
		if p.s == "" || p.s[0] != ' ' && p.s[0] != ')' {
			return false
		}
	}
}

// params parses parameters, of which the last of one name counts.
func (p *sf) params() (map[string]string, bool) {
	var m map[string]string
	for p.eat(';') {
		p.skip(" ")
		if p.s == "" || !isLower(p.s[0]) && p.s[0] != '*' {
			return nil, false
		}
		key := p.take(func(c byte) bool {
			return isLower(c) || isDigit(c) || strings.IndexByte("_-.*", c) >= 0
		})
		value := "?1"
		if p.eat('=') {
			var ok bool
			if value, ok = p.item(); !ok {
				return nil, false
			}
		}
		if m == nil {
			m = map[string]string{}
		}
		m[key] = value
	}
	return m, true
}

// item parses a bare item: string, token, number, bytes or boolean.
func (p *sf) item() (string, bool) {
	if p.s == "" {
		return "", false
	}
	switch c := p.s[0]; {
	case c == '"':
		return p.str()
	case c == '-' || isDigit(c):
		return p.number()
	case c == ':':
		p.s = p.s[1:]
		v := p.take(func(c byte) bool {
			return isLower(c) || 'A' <= c && c <= 'Z' || isDigit(c) || strings.IndexByte("+/=", c) >= 0
		})
		return v, p.eat(':')
	case c == '?':
		if len(p.s) < 2 || p.s[1] != '0' && p.s[1] != '1' {
			return "", false
		}
		v := p.s[:2]
		p.s = p.s[2:]
		return v, true
	}
	return p.token()
}

func (p *sf) token() (string, bool) {
	if p.s == "" || p.s[0] != '*' && !isLower(p.s[0]|0x20) {
		return "", false
	}
	return p.take(func(c byte) bool { return isTokenByte(c) || c == ':' || c == '/' }), true
}

func (p *sf) str() (string, bool) {
	var b strings.Builder
	for i := 1; i < len(p.s); i++ {
		switch c := p.s[i]; {
		case c == '"':
			p.s = p.s[i+1:]
			return b.String(), true
		case c == '\\':
			if i++; i == len(p.s) || p.s[i] != '"' && p.s[i] != '\\' {
				return "", false
			}
			b.WriteByte(p.s[i])
		case c < ' ' || c >= 0x7f:
			return "", false
		default:
			b.WriteByte(c)
		}
	}
	return "", false
}

// number parses an integer of at most 15 digits or a decimal of at most 12
// and 3.
func (p *sf) number() (string, bool) {
	sign := ""
	if p.eat('-') {
		sign = "-"
	}
	whole := p.take(isDigit)
	if whole == "" || len(whole) > 15 {
		return "", false
	}
	if !p.eat('.') {
		return sign + whole, true
	}
	part := p.take(isDigit)
	if len(whole) > 12 || part == "" || len(part) > 3 {
		return "", false
	}
	return sign + whole + "." + part, true
}

func isLower(c byte) bool { return 'a' <= c && c <= 'z' }
func isDigit(c byte) bool { return '0' <= c && c <= '9' }
