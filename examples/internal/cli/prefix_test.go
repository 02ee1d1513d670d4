package cli

import (
	"fmt"
	"strings"
	"testing"
)

func TestParsePrefix(t *testing.T) {
	for s, want := range map[string]string{
		"10.0.0.0/8":         "[10.0.0.0/8]",
		"10.0.0.1":           "[10.0.0.1/32]",
		"::ffff:10.0.0.1":    "[10.0.0.1/32]",
		"fd00::/8,10.0.0.1":  "[fd00::/8 10.0.0.1/32]",
		"10.0.0.1/8":         "the network of 8 bits is 10.0.0.0/8",
		"::ffff:10.0.0.0/96": "want IP or IP/BITS",
		"fe80::1%eth0":       "want IP or IP/BITS",
		"10.0.0.0/33":        "want IP or IP/BITS",
		"10.0.0.1,":          "want IP or IP/BITS",
		"":                   "want IP or IP/BITS",
	} {
		list, err := ParsePrefixes(s)
		if got := fmt.Sprint(list); err == nil && got != want || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, %v, want %s", s, list, err, want)
		}
	}
}

func TestParseAddress(t *testing.T) {
	for s, want := range map[string]string{
		"10.0.0.1/8":         "10.0.0.1/8",
		"fd00::1/96":         "fd00::1/96",
		"10.0.0.1":           "want IP/BITS",
		"::ffff:10.0.0.1/96": "want IP/BITS",
		"0.0.0.0/0":          "no interface",
		"ff02::1/16":         "no interface",
	} {
		p, err := ParseAddress(s)
		if err == nil && p.String() != want || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, %v, want %s", s, p, err, want)
		}
	}
}
