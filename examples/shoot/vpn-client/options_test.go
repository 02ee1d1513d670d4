package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"strings"
	"testing"

	"github.com/rhizome-tunnel/rhizome/examples/internal/cli"
	"github.com/rhizome-tunnel/rhizome/tunnel/packet"
)

func TestBadFlags(t *testing.T) {
	pair := "--tls-cert c --tls-key k "
	one := pair + "--server https://h:1 --address fd00::1/96 "
	two := one + "--server https://i:1 "
	for args, want := range map[string]string{
		"--foo":                                  "not defined: --foo",
		"extra":                                  `unexpected argument "extra"`,
		"--server h:1":                           `--server "h:1": want https://host:port`,
		"--server https://h":                     "want https://host:port",
		"--server https://h:1/x":                 "want https://host:port",
		"--server http://h:1":                    "want https://host:port",
		"--proxy=":                               `--proxy "": it is empty`,
		"--proxy-header x":                       "want 'Name: value'",
		"--address fd00::1":                      `--address "fd00::1": want IP/BITS`,
		"--network fd00::1/64":                   "the network of 64 bits is fd00::/64",
		"--route x=fd00::2":                      `--route "x=fd00::2": want CIDR=VIA[,src=IP]`,
		"--route 10.0.0.0/8=":                    "want CIDR=VIA[,src=IP]",
		"--route 10.0.0.0/8=fd00::2,src=fd00::1": "an address of the network's kind",
		"--route 10.0.0.0/8=fd00::2,mtu=5":       "want CIDR=VIA[,src=IP]",
		"--tls-cert c":                           "--tls-cert needs --tls-key",
		"--server https://h:1":                   "--tls-cert and --tls-key are missing",
		pair:                                     "--server is missing",
		pair + "--server https://h:1":            "--address is missing",
		one + "--mode tup":                       `--mode "tup": want tap or tun`,
		one + "--bond steel":                     `--bond "steel": want user or kernel`,
		one + "--bond kernel --mode tun":         "--bond kernel needs --mode tap",
		one + "--bond kernel --redundant":        "--redundant is for --bond user",
		one + "--mtu 500":                        "--mtu 500: want 1280 to 65535",
		one + "--masquerade maybe":               `--masquerade "maybe": want true or false`,
		one + "--masquerade true":                "--masquerade is for --network",
		one + "--firewall maybe":                 `--firewall "maybe": want true or false`,
		one + "--route 10.0.0.0/8":               "want CIDR=VIA with --mode tap",
		one + "--route 10.0.0.0/8=fd00::1":       "fd00::1 is this host's own --address",
		one + "--route 10.0.0.0/8=fd01::1":       "fd01::1 is on the network of no --address",
		one + "--route ::/0=fd00::2":             "this host's own way out",
		one + "--address 10.9.0.1/24 --route fd01::/64=10.9.0.2":                            "an IPv6 network needs an IPv6 VIA",
		one + "--proxy-header a:b":                                                          "--proxy-header needs --proxy",
		one + "--proxy ftp://h":                                                             `--proxy "ftp://h"`,
		one + "--proxy http://u:hidden@h:x":                                                 "--proxy: want http[s]://",
		one + "--proxy http://p:1 --proxy http://q:1":                                       "--proxy: want one for all servers or one for each, 1, not 2",
		two + "--proxy http://p:1 --proxy-header a:b --proxy-header a:c --proxy-header a:d": "--proxy-header: want one for all servers or one for each, 2, not 3",
		one + strings.Repeat("--server https://h:1 ", 20):                                   "--server: 21 of them, and 16 are the most",
		one + strings.Repeat("--address ::2/64 ", 16):                                       "--address: 17 of them, and 16 are the most",
		one + strings.Repeat("--network ::/64 ", 257):                                       "--network: 257 of them, and 256 are the most",
		one + "--admin-listen x":                                                            `--admin-listen "x": want host:port`,
		one + "--log-format xml":                                                            "want text or json",
	} {
		var out bytes.Buffer
		err := run(context.Background(), strings.Fields(args), &out, &out)
		var usage *cli.UsageError
		if !errors.As(err, &usage) || strings.Count(err.Error(), want) != 1 || strings.Contains(err.Error(), "hidden") {
			t.Errorf("%s: %v, want one %q", args, err, want)
		}
	}
}

func TestGoodFlags(t *testing.T) {
	two := "--tls-cert c --tls-key k --server https://h:1 --server https://i:1 --address fd00::1/96 "
	o, err := parse(strings.Fields(two+"--network 10.0.0.0/8 --proxy http://p:1 --proxy-header a:b --proxy-header a:c"), nil)
	if err != nil {
		t.Fatal(err)
	}
	if o.mode != packet.TAP || o.device != "bond0" || o.kernel || !o.masquerade || o.firewall || o.open {
		t.Errorf("in the shoot: %+v", o)
	}
	for firewall, open := range map[string]bool{"true": false, "false": true} {
		if o, err := parse(strings.Fields(two+"--network 10.0.0.0/8 --firewall="+firewall), nil); err != nil || o.firewall == open || o.open != open {
			t.Errorf("--firewall=%s: %+v %v", firewall, o, err)
		}
	}
	for i, want := range []string{"b", "c"} {
		if d := o.servers[i].proxy; d.Address != "p:1" || d.Header.Get("a") != want {
			t.Errorf("server %d: %+v", i, d)
		}
	}
	o, err = parse(strings.Fields(two+"--mode tun --route 10.0.0.0/8 --route fd01::/64=fd00::2,src=fd00::1 --proxy http://p:1 --proxy http://q:1 --proxy-header a:b"), nil)
	if err != nil {
		t.Fatal(err)
	}
	if o.mode != packet.TUN || o.device != "tun0" || o.masquerade || !o.firewall || len(o.routes) != 2 {
		t.Errorf("in the seed: %+v", o)
	}
	for i, want := range []string{"p:1", "q:1"} {
		if d := o.servers[i].proxy; d.Address != want || d.Header.Get("a") != "b" {
			t.Errorf("server %d: %+v", i, d)
		}
	}
}

// TestBadFiles is about what is wrong with files, which is no usage error.
func TestBadFiles(t *testing.T) {
	args := "--server https://h:1 --address fd00::1/96 --tls-cert /none/c --tls-key /none/k --server-ca /none/1"
	err := run(context.Background(), strings.Fields(args), &bytes.Buffer{}, &bytes.Buffer{})
	var usage *cli.UsageError
	if err == nil || errors.As(err, &usage) {
		t.Fatalf("got %v", err)
	}
	for _, file := range []string{"/none/c", "/none/1"} {
		if !strings.Contains(err.Error(), file) {
			t.Errorf("nothing about %s in %v", file, err)
		}
	}
}

func TestHelp(t *testing.T) {
	var out, logs bytes.Buffer
	if err := run(context.Background(), []string{"-h"}, &out, &logs); !errors.Is(err, flag.ErrHelp) {
		t.Fatal(err)
	}
	for _, want := range []string{
		"vpn-client is an end of the packet tunnel", "2 vpn-servers ◄═ vpn-client", "vpn-client --server https://",
		"--server URL", "--proxy-header 'NAME: VALUE'", "--route CIDR=VIA[,src=IP]", "(default tap)", "(default user)", "(repeatable)",
	} {
		if !strings.Contains(strings.Join(strings.Fields(out.String()), " "), want) {
			t.Errorf("the help has no %q", want)
		}
	}
	for line := range strings.Lines(out.String()) {
		if len([]rune(line)) > 100 {
			t.Errorf("a long line: %s", line)
		}
	}
	if logs.Len() > 0 {
		t.Errorf("standard error: %s", &logs)
	}
}
