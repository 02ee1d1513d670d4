package main

import (
	"encoding/binary"
	"fmt"
	"io"
	"log"
	"net"
	"os"
	"runtime/pprof"

	"github.com/inetaf/tcpproxy"
	"github.com/rhizome-tunnel/rhizome/tunnel/entrypoint"
)

// What a process of this program is, where it listens, and what is behind it.
const (
	roleVariable    = "RHIZOME_COMPARE_ROLE"
	listenVariable  = "RHIZOME_COMPARE_LISTEN"
	backendVariable = "RHIZOME_COMPARE_BACKEND"
	profileVariable = "RHIZOME_COMPARE_PROFILE"
)

// play is the whole life of a process with a role: until its standard input ends.
func play(role string) (status int) {
	listen, backend := os.Getenv(listenVariable), os.Getenv(backendVariable)
	failed := make(chan error, 1)
	switch role {
	case "backend":
		go func() { failed <- serveBackend(listen) }()
	case "entrypoint":
		go func() { failed <- serveEntrypoint(listen, backend) }()
	case "tcpproxy":
		log.SetOutput(io.Discard) // it has no other switch
		go func() {
			var p tcpproxy.Proxy
			p.AddSNIRoute(listen, serverName, tcpproxy.To(backend))
			failed <- p.Run()
		}()
	default:
		failed <- fmt.Errorf("no role %q", role)
	}
	if file := os.Getenv(profileVariable); file != "" {
		f, err := os.Create(file)
		if err == nil {
			err = pprof.StartCPUProfile(f)
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, "compare:", err)
			return 1
		}
		defer pprof.StopCPUProfile()
	}
	ended := make(chan struct{})
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		close(ended)
	}()
	select {
	case err := <-failed:
		fmt.Fprintf(os.Stderr, "compare: %s: %v\n", role, err)
		return 1
	case <-ended:
		return 0
	}
}

func serveEntrypoint(listen, backend string) error {
	l, err := net.Listen("tcp", listen)
	if err != nil {
		return err
	}
	r := &entrypoint.Router{Limits: entrypoint.Limits{Conns: -1}} // all come from one address
	err = r.SetRoutes([]*entrypoint.Route{{
		Name: "shoot", SNI: []string{serverName}, Handler: &entrypoint.Forward{Backends: []string{backend}},
	}})
	if err != nil {
		return err
	}
	return r.Serve(l, nil)
}

// What a client asks of the backend, in the byte behind its ClientHello.
const (
	doAnswer   = 'a' // one byte, and close
	doStay     = 's' // one byte, and wait for the end
	doDownload = 'd' // bytes without end
)

func serveBackend(listen string) error {
	l, err := net.Listen("tcp", listen)
	if err != nil {
		return err
	}
	endless := make([]byte, 256<<10)
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer c.Close()
			what, err := readHello(c)
			if err != nil {
				return
			}
			switch what {
			case doAnswer:
				_, _ = c.Write([]byte{what})
			case doStay:
				if _, err := c.Write([]byte{what}); err == nil {
					_, _ = c.Read(make([]byte, 1))
				}
			case doDownload:
				for err == nil {
					_, err = c.Write(endless)
				}
			}
		}()
	}
}

// readHello reads a TLS record and the byte behind it.
func readHello(c net.Conn) (what byte, err error) {
	b := make([]byte, 4<<10)
	n, err := io.ReadAtLeast(c, b, 5)
	if err != nil {
		return 0, err
	}
	end := 5 + int(binary.BigEndian.Uint16(b[3:])) + 1
	if end > len(b) {
		return 0, fmt.Errorf("a ClientHello of %d bytes", end)
	}
	if n < end {
		if _, err := io.ReadFull(c, b[n:end]); err != nil {
			return 0, err
		}
	}
	return b[end-1], nil
}
