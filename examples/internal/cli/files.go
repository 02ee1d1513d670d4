package cli

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/rhizome-tunnel/rhizome/tunnel/certs"
)

// Follower is a certs.KeyPair, certs.Pool or certs.Tokens, or a [File].
type Follower interface {
	Load() error
	Ready() error
	Run(ctx context.Context) error
}

// Files are the followed files of a program.
type Files []Follower

// Load reads all files, and returns what is wrong with any of them.
func (fs Files) Load() error {
	var errs []error
	for _, f := range fs {
		errs = append(errs, f.Load())
	}
	return errors.Join(errs...)
}

// Ready returns nil if there is something to use of every file.
func (fs Files) Ready() error {
	var errs []error
	for _, f := range fs {
		errs = append(errs, f.Ready())
	}
	return errors.Join(errs...)
}

// Follow reads the files again and again until the group ends.
func (fs Files) Follow(g *Group) {
	for _, f := range fs {
		g.Go("files", func() error { return f.Run(g.Context()) })
	}
}

// KeyPair checks that a certificate and its key are named both or not at all,
// which gives nil.
func KeyPair(certFlag, certFile, keyFlag, keyFile string) (*certs.KeyPair, error) {
	switch {
	case certFile == "" && keyFile == "":
		return nil, nil
	case certFile == "":
		return nil, Usagef("--%s needs --%s", keyFlag, certFlag)
	case keyFile == "":
		return nil, Usagef("--%s needs --%s", certFlag, keyFlag)
	}
	return &certs.KeyPair{CertFile: certFile, KeyFile: keyFile}, nil
}

// ParseCA reads [CLUSTER=]FILE: an authority, bound to a cluster or not. A =
// behind a slash is part of the file's path.
func ParseCA(s string) (certs.CA, error) {
	cluster, file, bound := strings.Cut(s, "=")
	if bound && strings.ContainsAny(cluster, `/\`) {
		bound = false
	}
	if !bound {
		cluster, file = "", s
	}
	if bound {
		if err := certs.ValidCluster(cluster); err != nil {
			return certs.CA{}, fmt.Errorf("want [CLUSTER=]FILE: %w", err)
		}
	}
	if file == "" {
		return certs.CA{}, errors.New("want [CLUSTER=]FILE: no file")
	}
	return certs.CA{Cluster: cluster, File: file}, nil
}

// ParseBinding reads WHAT=CLUSTER, such as an address and the cluster that is
// behind it. The last = counts, because a path may have others.
func ParseBinding(s string) (what, cluster string, err error) {
	i := strings.LastIndexByte(s, '=')
	if i < 0 {
		return "", "", errors.New("no =CLUSTER behind it")
	}
	if what, cluster = s[:i], s[i+1:]; what == "" {
		return "", "", errors.New("nothing before =CLUSTER")
	}
	return what, cluster, certs.ValidCluster(cluster)
}
