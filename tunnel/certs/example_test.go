package certs_test

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/rhizome-tunnel/rhizome/tunnel/certs"
	"github.com/rhizome-tunnel/rhizome/tunnel/tunneltest"
)

// files writes an authority and one certificate of it to a new directory.
func files(o tunneltest.CertOptions) (dir, caFile, certFile, keyFile string) {
	dir, err := os.MkdirTemp("", "certs")
	if err != nil {
		log.Fatal(err)
	}
	ca, err1 := tunneltest.NewCA("example")
	cert, err2 := ca.Issue(o)
	caFile, err3 := ca.WriteFile(dir, "ca")
	certFile, keyFile, err4 := cert.WriteFiles(dir, "tls")
	if err := errors.Join(err1, err2, err3, err4); err != nil {
		log.Fatal(err)
	}
	return dir, caFile, certFile, keyFile
}

// A key pair follows its files. A program gives Run a goroutine; here Load
// looks at once.
func ExampleKeyPair() {
	dir, _, certFile, keyFile := files(tunneltest.CertOptions{CommonName: "proxy-server", Server: true})
	defer os.RemoveAll(dir)

	pair := &certs.KeyPair{CertFile: certFile, KeyFile: keyFile}
	if err := pair.Load(); err != nil {
		log.Fatal(err)
	}
	fmt.Println("serves", pair.Certificate().Leaf.Subject)

	os.WriteFile(keyFile, []byte("cut sho"), 0o600)
	fmt.Println("bad file refused:", pair.Load() != nil)
	fmt.Println("serves", pair.Certificate().Leaf.Subject)
	// Output:
	// serves CN=proxy-server
	// bad file refused: true
	// serves CN=proxy-server
}

// A CA that is bound to a cluster speaks for that one only.
func ExamplePool_Identify() {
	dir, caFile, certFile, keyFile := files(tunneltest.CertOptions{CommonName: "node-7", Client: true})
	defer os.RemoveAll(dir)
	cert, err := tls.LoadX509KeyPair(certFile, keyFile)
	if err != nil {
		log.Fatal(err)
	}

	pool := &certs.Pool{CAs: []certs.CA{{Cluster: "shoot--dev--a", File: caFile}}}
	// In a server these come from tls.ConnectionState.VerifiedChains.
	chains, err := cert.Leaf.Verify(x509.VerifyOptions{
		Roots:     pool.Roots(),
		KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	})
	if err != nil {
		log.Fatal(err)
	}
	id, err := pool.Identify(chains)
	fmt.Println(id.Cluster, err)
	fmt.Println("may reach a:", id.Allows("shoot--dev--a"))
	fmt.Println("may reach b:", id.Allows("shoot--dev--b"))
	// Output:
	// shoot--dev--a <nil>
	// may reach a: true
	// may reach b: false
}

func ExampleTokens() {
	dir, err := os.MkdirTemp("", "certs")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	file := filepath.Join(dir, "tokens.yaml")
	os.WriteFile(file, []byte(`
- cluster: shoot--dev--a
  sha256: `+certs.HashToken("correct horse")+`
- cluster: shoot--dev--b
  sha256: `+certs.HashToken("battery staple")+`
  notAfter: 2020-01-31T00:00:00Z
`), 0o600)

	tokens := &certs.Tokens{File: file}
	tok, err := tokens.Lookup("correct horse")
	fmt.Println(tok.Cluster, err)
	_, err = tokens.Lookup("battery staple")
	fmt.Println(errors.Is(err, certs.ErrExpired), err)
	_, err = tokens.Lookup("guess")
	fmt.Println(err)
	// Output:
	// shoot--dev--a <nil>
	// true certs: expired: token of cluster "shoot--dev--b" at 2020-01-31T00:00:00Z
	// certs: unknown token
}

// Mutual TLS where both sides follow their files.
func ExampleServerTLS() {
	dir, caFile, certFile, keyFile := files(tunneltest.CertOptions{
		CommonName: "shoot--dev--a", DNS: []string{"shoot--dev--a"}, Server: true, Client: true})
	defer os.RemoveAll(dir)
	pair := &certs.KeyPair{CertFile: certFile, KeyFile: keyFile}
	pool := &certs.Pool{CAs: []certs.CA{{File: caFile}}}

	a, b := tunneltest.Pipe()
	done := make(chan struct{})
	go func() {
		defer close(done)
		conn := tls.Server(b, certs.ServerTLS(pair, pool, true))
		defer conn.Close()
		if err := conn.Handshake(); err != nil {
			fmt.Println("server:", err)
			return
		}
		id, err := pool.Identify(conn.ConnectionState().VerifiedChains)
		fmt.Println("server sees", id.Cluster, err)
	}()
	client := tls.Client(net.Conn(a), certs.ClientTLS(pair, pool, "shoot--dev--a"))
	client.SetDeadline(time.Now().Add(10 * time.Second))
	if err := client.Handshake(); err != nil {
		fmt.Println("client:", err)
	}
	<-done
	a.Close()
	// Output:
	// server sees shoot--dev--a <nil>
}

func ExampleClusterOf() {
	dir, _, certFile, keyFile := files(tunneltest.CertOptions{CommonName: "agent-1", Cluster: "shoot--dev--a"})
	defer os.RemoveAll(dir)
	cert, err := tls.LoadX509KeyPair(certFile, keyFile)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(certs.ClusterOf(cert.Leaf))
	// Output: shoot--dev--a <nil>
}
