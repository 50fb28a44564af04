; The installer: per user, removable, and able to update an earlier version.
Unicode true
!include "LogicLib.nsh"
!include "MUI2.nsh"

Name "HeteGen"
OutFile "${RESULT}"
RequestExecutionLevel user
InstallDir "$LOCALAPPDATA\Programs\HeteGen"
InstallDirRegKey HKCU "Software\HeteGen" "InstallDir"
SetCompressor /SOLID lzma
SetCompressorDictSize 64
ManifestDPIAware true
ManifestLongPathAware true
BrandingText "HeteGen ${VERSION}"

VIProductVersion "${VERSION}.0"
VIAddVersionKey "ProductName" "HeteGen"
VIAddVersionKey "FileDescription" "HeteGen"
VIAddVersionKey "FileVersion" "${VERSION}"
VIAddVersionKey "ProductVersion" "${VERSION}"
VIAddVersionKey "CompanyName" "The HeteGen authors"
VIAddVersionKey "LegalCopyright" "Copyright 2026 The HeteGen authors"

!define UNINSTALL "Software\Microsoft\Windows\CurrentVersion\Uninstall\HeteGen"
!define MUI_ICON "..\..\assets\app.ico"
!define MUI_UNICON "..\..\assets\app.ico"
!define MUI_FINISHPAGE_RUN "$INSTDIR\hetegen.exe"
!insertmacro MUI_PAGE_LICENSE "..\..\LICENSE"
!insertmacro MUI_PAGE_DIRECTORY
!insertmacro MUI_PAGE_INSTFILES
!insertmacro MUI_PAGE_FINISH
!insertmacro MUI_UNPAGE_CONFIRM
!insertmacro MUI_UNPAGE_INSTFILES
!insertmacro MUI_LANGUAGE "English"
!insertmacro MUI_LANGUAGE "German"

!define MODEL_FILE "HeteGen.gguf"
LangString MODEL ${LANG_ENGLISH} "Language model (GGUF)"
LangString MODEL ${LANG_GERMAN} "Sprachmodell (GGUF)"
LangString RUNNING ${LANG_ENGLISH} "HeteGen is running. Close it and try again."
LangString RUNNING ${LANG_GERMAN} "HeteGen läuft noch. Bitte beenden und noch einmal versuchen."

; Windows does not allow writing to the file of a running program.
!macro REFUSE_WHILE_RUNNING PROGRAM
  ${If} ${FileExists} "$INSTDIR\${PROGRAM}"
    ClearErrors
    FileOpen $0 "$INSTDIR\${PROGRAM}" a
    ${If} ${Errors}
      MessageBox MB_OK|MB_ICONEXCLAMATION "$(RUNNING)" /SD IDOK
      Abort
    ${EndIf}
    FileClose $0
  ${EndIf}
!macroend

; Offer the program for .gguf beside others; the user chooses the default.
!macro OFFER_FOR_FILES
  WriteRegStr HKCU "Software\Classes\${MODEL_FILE}" "" "$(MODEL)"
  WriteRegStr HKCU "Software\Classes\${MODEL_FILE}\DefaultIcon" "" "$INSTDIR\hetegen.exe,0"
  WriteRegStr HKCU "Software\Classes\${MODEL_FILE}\shell\open\command" "" '"$INSTDIR\hetegen.exe" "%1"'
  WriteRegStr HKCU "Software\Classes\.gguf\OpenWithProgids" "${MODEL_FILE}" ""
  ; Make the shell notice the change at once.
  System::Call 'shell32::SHChangeNotify(i 0x08000000, i 0, p 0, p 0)'
!macroend

; Remove only what an installer created: a chosen folder may contain other files.
!macro REMOVE_PROGRAM
  RMDir /r "$INSTDIR\_internal"
  Delete "$INSTDIR\hetegen.exe"
  Delete "$INSTDIR\hetegen-cli.exe"
!macroend

Section
  !insertmacro REFUSE_WHILE_RUNNING "hetegen.exe"
  !insertmacro REFUSE_WHILE_RUNNING "hetegen-cli.exe"
  !insertmacro REMOVE_PROGRAM
  SetOutPath "$INSTDIR"
  File /r "${BUNDLE}\*"
  CreateShortcut "$SMPROGRAMS\HeteGen.lnk" "$INSTDIR\hetegen.exe"
  WriteUninstaller "$INSTDIR\uninstall.exe"
  WriteRegStr HKCU "Software\HeteGen" "InstallDir" "$INSTDIR"
  WriteRegStr HKCU "${UNINSTALL}" "DisplayName" "HeteGen"
  WriteRegStr HKCU "${UNINSTALL}" "DisplayVersion" "${VERSION}"
  WriteRegStr HKCU "${UNINSTALL}" "DisplayIcon" "$INSTDIR\hetegen.exe"
  WriteRegStr HKCU "${UNINSTALL}" "Publisher" "The HeteGen authors"
  WriteRegStr HKCU "${UNINSTALL}" "InstallLocation" "$INSTDIR"
  WriteRegStr HKCU "${UNINSTALL}" "UninstallString" '"$INSTDIR\uninstall.exe"'
  WriteRegStr HKCU "${UNINSTALL}" "QuietUninstallString" '"$INSTDIR\uninstall.exe" /S'
  WriteRegDWORD HKCU "${UNINSTALL}" "EstimatedSize" ${KILOBYTES}
  WriteRegDWORD HKCU "${UNINSTALL}" "NoModify" 1
  WriteRegDWORD HKCU "${UNINSTALL}" "NoRepair" 1
  !insertmacro OFFER_FOR_FILES
SectionEnd

; Keep conversations, settings and models: they belong to the user.
Section "Uninstall"
  !insertmacro REFUSE_WHILE_RUNNING "hetegen.exe"
  !insertmacro REFUSE_WHILE_RUNNING "hetegen-cli.exe"
  !insertmacro REMOVE_PROGRAM
  Delete "$INSTDIR\uninstall.exe"
  RMDir "$INSTDIR"
  Delete "$SMPROGRAMS\HeteGen.lnk"
  ; The fetched build of PyTorch for the graphics card: gigabytes, without user data.
  RMDir /r "$LOCALAPPDATA\HeteGen\gpu-runtime"
  DeleteRegKey HKCU "Software\HeteGen"
  DeleteRegKey HKCU "Software\Classes\${MODEL_FILE}"
  DeleteRegValue HKCU "Software\Classes\.gguf\OpenWithProgids" "${MODEL_FILE}"
  System::Call 'shell32::SHChangeNotify(i 0x08000000, i 0, p 0, p 0)'
  DeleteRegKey HKCU "${UNINSTALL}"
SectionEnd
