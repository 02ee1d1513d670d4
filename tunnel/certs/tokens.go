package certs

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"sort"
	"time"
	"unicode/utf8"

	"github.com/rhizome-tunnel/rhizome/tunnel/internal/yamldoc"
	"sigs.k8s.io/yaml"
)

// ErrUnknownToken means that no entry of the token file fits.
var ErrUnknownToken = errors.New("certs: unknown token")

// Token is one entry of a token file. The token itself is nowhere stored.
type Token struct {
	// Cluster is the cluster that the holder belongs to. Never "*".
	Cluster string
	// SHA256 is what [HashToken] makes of the token: 64 lower-case digits.
	SHA256 string
	// NotAfter is when the token expires. Zero means never.
	NotAfter time.Time
	// Name says what the entry is for, in logs. Optional.
	Name string
}

// HashToken returns the SHA-256 of a token as 64 lower-case hexadecimal
// digits, as it stands in a token file. It is not salted or stretched: a
// token must be random (32 bytes of crypto/rand), not a password.
func HashToken(token string) string {
	sum := sha256.Sum256([]byte(token))
	return hex.EncodeToString(sum[:])
}

// Tokens is a list of bearer tokens that follows its file, a YAML list:
//
//   - cluster: shoot--dev--a
//     sha256: 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08
//     notAfter: 2027-01-31T00:00:00Z   # optional, RFC 3339
//     name: canary                     # optional
//
// Load, Run, Refresh and Changed work as those of [KeyPair]. A file without
// any list is refused, because a file cut short looks so; the list [] admits
// nobody. All methods may be called at the same time. A Tokens must not be
// copied or changed after its first use.
type Tokens struct {
	// File is the YAML file.
	File string
	// Interval is how often Run and Refresh read the file. Zero means
	// DefaultInterval, negative means that it is read once only.
	Interval time.Duration
	// Logger gets a line for each new content, good or bad, and never a
	// token. Nil means silent.
	Logger *slog.Logger

	f follower[tokenSet]
}

type tokenSet struct{ byHash map[[sha256.Size]byte]Token }

func (t *Tokens) source() source[tokenSet] {
	return source[tokenSet]{
		files:    []string{t.File},
		interval: t.Interval,
		logger:   t.Logger,
		parse: func(c [][]byte) (*tokenSet, error) {
			list, err := parseTokens(c[0])
			if err != nil {
				return nil, fmt.Errorf("certs: %s: %w", t.File, err)
			}
			set := &tokenSet{byHash: make(map[[sha256.Size]byte]Token, len(list))}
			for _, tok := range list {
				var sum [sha256.Size]byte
				hex.Decode(sum[:], []byte(tok.SHA256))
				set.byHash[sum] = tok
			}
			return set, nil
		},
		describe: func(s *tokenSet) []any { return []any{"tokens", len(s.byHash)} },
	}
}

// Load reads the file now. See [KeyPair.Load].
func (t *Tokens) Load() error { return t.f.load(t.source(), false) }

// Run reads the file, now and each Interval, until ctx ends, then returns nil.
func (t *Tokens) Run(ctx context.Context) error { return t.f.run(ctx, t.source()) }

// Refresh reads the file unless the last look is younger than Interval. See
// [KeyPair.Refresh].
func (t *Tokens) Refresh() error { return t.f.refresh(t.source()) }

// Ready returns nil when there is something to use. See [KeyPair.Ready].
func (t *Tokens) Ready() error {
	_, err := t.f.get(t.source())
	return err
}

// Changed returns a channel that is closed when the list changes next.
func (t *Tokens) Changed() <-chan struct{} { return t.f.next() }

// Lookup finds the entry of a bearer token. The error is [ErrUnknownToken],
// or answers [ErrExpired] and comes with the entry, so that a log can name
// it, or says why the file is bad. It never contains the token.
func (t *Tokens) Lookup(bearer string) (Token, error) {
	set, err := t.f.get(t.source())
	if err != nil {
		return Token{}, err
	}
	// The hash is looked up, so the time it takes depends on the hash of a
	// guess only, which tells nothing about the tokens near it.
	sum := sha256.Sum256([]byte(bearer))
	tok, ok := set.byHash[sum]
	if !ok || bearer == "" || subtle.ConstantTimeCompare([]byte(tok.SHA256), []byte(hex.EncodeToString(sum[:]))) != 1 {
		return Token{}, ErrUnknownToken
	}
	if !tok.NotAfter.IsZero() && time.Now().After(tok.NotAfter) {
		return tok, fmt.Errorf("%w: token of cluster %q at %s", ErrExpired, tok.Cluster, tok.NotAfter.Format(time.RFC3339))
	}
	return tok, nil
}

// parseTokens reports every bad entry, each by its index and field.
func parseTokens(data []byte) ([]Token, error) {
	data = bytes.TrimPrefix(data, []byte("\ufeff"))
	if !utf8.Valid(data) {
		return nil, errors.New("not UTF-8")
	}
	if yamldoc.Several(data) {
		return nil, errors.New("several YAML documents: write one list")
	}
	data, err := yaml.YAMLToJSONStrict(data)
	if err != nil {
		return nil, err
	}
	var entries []map[string]json.RawMessage
	if err := json.Unmarshal(data, &entries); err != nil {
		return nil, errors.New("want a YAML list of entries with cluster and sha256")
	}
	if entries == nil {
		return nil, errors.New("no list in it: write [] to admit nobody")
	}
	var errs []error
	list := make([]Token, 0, len(entries))
	seen := make(map[string]int)
	for i, entry := range entries {
		tok, entryErrs := parseToken(entry)
		if first, ok := seen[tok.SHA256]; ok && len(entryErrs) == 0 {
			entryErrs = append(entryErrs, fmt.Errorf("sha256: the same token as in [%d]", first))
		} else if tok.SHA256 != "" {
			seen[tok.SHA256] = i
		}
		for _, err := range entryErrs {
			errs = append(errs, fmt.Errorf("[%d].%w", i, err))
		}
		list = append(list, tok)
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	return list, nil
}

func parseToken(entry map[string]json.RawMessage) (tok Token, errs []error) {
	fields := make([]string, 0, len(entry))
	for field := range entry {
		fields = append(fields, field)
	}
	sort.Strings(fields) // errors in a fixed order
	text := func(field string) string {
		raw, ok := entry[field]
		if !ok {
			return ""
		}
		var s *string
		if json.Unmarshal(raw, &s) != nil || s == nil {
			errs = append(errs, fmt.Errorf("%s: want a string; put it in quotes", field))
			return ""
		}
		return *s
	}
	for _, field := range fields {
		switch field {
		case "cluster", "sha256", "notAfter", "name":
		default:
			errs = append(errs, fmt.Errorf("%.100q: unknown field; want cluster, sha256, notAfter, name", field))
		}
	}
	before := len(errs)
	tok.Name = text("name")
	tok.Cluster = text("cluster")
	if len(errs) == before {
		if err := ValidCluster(tok.Cluster); err != nil {
			errs = append(errs, fmt.Errorf("cluster: %w", err))
		}
	}
	tok.SHA256, errs = tokenHash(text("sha256"), errs)
	if s := text("notAfter"); s != "" {
		at, err := time.Parse(time.RFC3339, s)
		if err != nil {
			errs = append(errs, fmt.Errorf("notAfter: want an RFC 3339 time such as 2027-01-31T00:00:00Z, not %.40q", s))
		}
		tok.NotAfter = at
	} else if _, ok := entry["notAfter"]; ok && len(errs) == 0 {
		errs = append(errs, errors.New("notAfter: empty; leave it out for a token that never expires"))
	}
	return tok, errs
}

func tokenHash(s string, errs []error) (string, []error) {
	sum, err := hex.DecodeString(s)
	if err != nil || len(sum) != sha256.Size {
		// What stands here may be the token itself: do not repeat it.
		return "", append(errs, errors.New("sha256: want the 64 hexadecimal digits of the token's SHA-256"))
	}
	if s = hex.EncodeToString(sum); s == HashToken("") {
		return "", append(errs, errors.New("sha256: this is the hash of an empty token"))
	}
	return s, errs
}
